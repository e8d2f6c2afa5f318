"""Tool calling: one module per family of models, behind one interface."""
