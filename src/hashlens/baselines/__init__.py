"""The methods that the paper compares with: fit and encode, one a file."""
