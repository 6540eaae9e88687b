#include "coordinator/core/json_writer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace ps::coordinator {

void JsonWriter::Add(std::string_view value) {
  const bool plain = std::all_of(value.begin(), value.end(), [](char c) {
    return c >= ' ' && c <= '~' && c != '"' && c != '\\';
  });
  if (!plain) return AddTree(nlohmann::json(value));
  Comma();
  text_ += '"';
  text_ += value;
  text_ += '"';
}

void JsonWriter::AddTree(const nlohmann::json& value) {
  Comma();
  text_ += value.dump(-1, ' ', /*ensure_ascii=*/false, nlohmann::json::error_handler_t::replace);
}

}  // namespace ps::coordinator
