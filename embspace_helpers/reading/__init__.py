"""Reading: a model as words. Nothing here depends on the other rooms."""
