"""Coverage of the machine code of modules at both levels: collected by block, merged, written as LCOV and drcov."""
