"""The controller's part of debugging ranks: the terminal it lends, and what is asked there."""
