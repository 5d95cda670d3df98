"""Golden behaviour: what a module does, as readable text that later runs are compared with."""
