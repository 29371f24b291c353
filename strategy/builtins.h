// The types every program has: the one list of what the library brings.
#pragma once

namespace castor::strategy {

class Registry;

/// Fills the registry's tables with the library's samplers, metrics, hooks, optimizers, schedulers, strategies and
/// plugins. Call once.
void add_builtins(Registry& registry);

}  // namespace castor::strategy
