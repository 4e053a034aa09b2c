"""The digital chip: compiled programs, their integer model, Verilog, and what they cost."""
