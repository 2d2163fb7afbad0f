"""The C++ engine that runs a network, its build, and the plan that it follows."""
