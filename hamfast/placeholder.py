"""What a written configuration names as the data folder until the user fills it in."""

DATA_FOLDER = "path/to/dataset"
