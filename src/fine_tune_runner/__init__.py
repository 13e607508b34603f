"""One fine-tuned model per client: check, train, evaluate, compare, promote or refuse, roll back."""
