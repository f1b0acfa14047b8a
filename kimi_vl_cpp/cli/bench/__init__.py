"""`kimi-vl bench`: the options, the order of the measurements and what is printed; kimi_vl_cpp.bench measures."""
