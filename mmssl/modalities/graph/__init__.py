"""The graph modality: nodes are tokens, a batch of graphs is one packed sequence with edges."""
