"""Curation: what is read, how stages are run over it in any number of processes, what is written."""
