"""The files that stages leave for others: for each kind its type, and the only functions that read and write it.

Light, because the Snakefile reads some of them. Most types are dictionaries as in the file: what older code has left
stays readable, so an entry that not every version wrote is one that may be absent.
"""
