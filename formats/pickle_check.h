// The walk over a finished pickle that makes all later walks safe.
//
// Delicate: it meets trees that nobody checked yet, so it keeps its own stack instead of recursing, and visits each
// value once although a walk from the root may meet it exponentially often.
#pragma once

#include <cstddef>
#include <string>

#include "formats/pickle_value.h"

namespace castor::formats {

/// Returns what is wrong with the tree under `tree.root`, empty if nothing is: a value that contains itself, more than
/// kMaxPickleDepth containers inside each other, more than `max_values` values met on a walk that takes nothing as
/// shared, or a dict with a text or integer key twice.
std::string find_pickle_problem(const PickleTree& tree, std::size_t max_values);

}  // namespace castor::formats
