"""Problems, normal equations, linear solvers and step control."""
