"""A fifth method, which no file of the package knows: it says the question again, more often the
more effort it is given."""
