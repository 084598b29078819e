"""The regression bench: does the suite detect historical bugs of SGLang when a fix is reverted?

`command` runs the bench; `cases` reads the reverts, `runs` starts one pytest process per case,
`recorder` (a pytest plugin in that process) records its events, `judgement` evaluates them,
`results` stores the outcome in a JSON file, `table` and `page` show it.
"""
