"""What is sent: datasets, arrival processes and the sealed plan made of both."""
