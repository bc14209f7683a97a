"""Bytes, text and tensors: pictures, token ids, datasets. Knows no model."""
