"""The regression bench: is each historical bug of SGLang seen when its fix is taken out again?

`command` is the order of events; `cases` reads what is to be taken out, `runs` starts one pytest
per case, in which `recorder` (a pytest plugin) writes down what happens, `judgement` decides,
`results` keeps it in a JSON file, `table` and `page` show it.
"""
