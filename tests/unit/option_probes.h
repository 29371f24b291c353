// How an option is shown to do something: a run with it at another value must differ from the run without in something
// that can be seen: a number, a byte count, a collective, a log line, a file, an error.
//
// Delicate: what is compared must not change by itself, so each base is run twice; bytes are only counted in runs of
// one rank.
#pragma once

#include <string>
#include <vector>

#include "strategy/registry.h"

namespace castor::strategy::test_options {

/// How one option is tried.
struct Probe {
  std::string option;                  ///< dotted name
  std::string value;                   ///< YAML
  std::vector<std::string> base = {};  ///< "path=value" that must hold for the option to matter
  int world_size = 1;
};

/// The types that the runs may name.
Registry& types();

/// Fails for options of a struct that have no probe, and for probes of options that are not there.
///   elsewhere  options whose effect other tests show
void check_complete(const std::string& type, const StructCodec& codec, const std::vector<Probe>& probes,
                    const std::vector<std::string>& elsewhere = {});

/// Fails for retired options that take something else than the peers' default, or not that.
void check_retired(const std::string& type, const StructCodec& codec);

/// Three updates for each probe, with overrides of a `strategy` block; fails for one that changes nothing.
void check_strategy_probes(const std::string& type, const std::vector<Probe>& probes, const std::string& block,
                           const std::string& prefix);

/// The same with overrides of a whole run of the tiny config.
void check_run_probes(const std::string& type, const std::vector<Probe>& probes, const std::string& prefix);

}  // namespace castor::strategy::test_options
