"""What lies beside growing blobs of which bytes came out of turn, besides these bytes themselves (`span_file.py`)."""
