// Plugin: how a strategy spreads a model over ranks. The names are ColossalAI's.
#pragma once

#include <memory>
#include <vector>

#include "autograd/variable.h"
#include "dist/comm.h"
#include "strategy/gradient_exchange.h"

namespace castor::strategy {

class Plugin {
 public:
  virtual ~Plugin() = default;
  /// The name in a config.
  virtual const char* type_name() const = 0;
  /// What the gradients of `parameters` go through; on every rank with the same parameters in the same order. Both must
  /// outlive it.
  virtual std::unique_ptr<GradientExchange> make_exchange(dist::Comm& comm,
                                                          const std::vector<autograd::Variable>& parameters) = 0;
};

}  // namespace castor::strategy
