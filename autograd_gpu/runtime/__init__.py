"""Devices, compilation, buffers and dispatch: one module per engine."""
