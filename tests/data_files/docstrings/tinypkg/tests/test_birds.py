def helper_of_tests():
    """Help a test of the package along.

    What stands in a folder of tests is no documentation for a user, so that it is not read at
    all, however well it is written.
    """
