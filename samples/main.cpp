// The program `castor`: the library's command line over the library's types and the samples'. A user's own program is
// this file with their own types (samples/extend/main.cpp).
#include "samples/sample_types.h"
#include "strategy/builtins.h"
#include "strategy/cli/castor_main.h"
#include "strategy/registry.h"

int main(int argc, char** argv) {
  castor::strategy::Registry registry;
  castor::strategy::add_builtins(registry);
  castor::samples::add_samples(registry);
  return castor::strategy::castor_main(argc, argv, registry);
}
