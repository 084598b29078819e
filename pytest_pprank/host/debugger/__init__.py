"""The rank's part of debugging: pdb at the user's terminal, or a debugger that attaches."""
