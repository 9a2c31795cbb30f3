"""A package: another family has a system of the same name, and its test is called the same."""
