"""What PrepareData is made of: sources -> rows -> examined parts -> duplicates and splits -> finished parts -> card."""
