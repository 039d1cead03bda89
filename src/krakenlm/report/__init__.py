"""The last stage: result files in, tables and one page out. It imports no other stage."""
