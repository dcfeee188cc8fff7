"""What a message of the Open Inference Protocol means: tensors to requests, rankings to tensors."""
