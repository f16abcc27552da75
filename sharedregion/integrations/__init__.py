"""One framework a file, imported only when asked for: `import sharedregion.integrations.torch`.

What can be placed and what travels needs no import: the codecs of torch, Arrow, pandas and polars are
found by the values themselves. Here is what a framework has to be asked for.
"""
