"""DeepSpeed training: processes, engine, the SFT and reward loops."""
