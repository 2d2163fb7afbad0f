"""What the pages of docs/ show: tables of evidence, and the picture of speed."""
