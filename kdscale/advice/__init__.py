"""`kdscale advise`: from a table of trials to the student to use, with the evidence."""
