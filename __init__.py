"""demkd: entropy-weighted, decoupled multi-teacher knowledge distillation from a cache of the teachers' answers."""
