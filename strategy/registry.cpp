// The registry's tables and their listing.
#include "strategy/registry.h"

#include <algorithm>

#include "strategy/config/option_help.h"

namespace castor::strategy {

Registry::Registry() = default;
Registry::~Registry() = default;

std::string list_types(const TypeDirectory& types) {
  std::string out;
  for (const TypeTableBase* table : types.tables()) {
    out += (out.empty() ? "" : "\n") + table->kind() + "\n";
    std::size_t columns = 0;
    for (const TypeTableBase::Entry& entry : table->entries()) columns = std::max(columns, entry.name.size());
    for (const TypeTableBase::Entry& entry : table->entries()) {
      const std::string padding(columns - entry.name.size() + 2, ' ');
      const std::string text = entry.refusal.empty() ? entry.doc : "refused: " + entry.refusal;
      const std::string lead = "  " + entry.name + padding;
      out += lead + wrap_text(text, static_cast<int>(lead.size()), static_cast<int>(lead.size()), 110) + "\n";
    }
    if (table->entries().empty()) out += "  none\n";
  }
  return out;
}

}  // namespace castor::strategy
