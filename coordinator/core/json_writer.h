// JSON text made piece by piece, for what is written again and again: a tree of nlohmann::json has
// several allocations for each member, which cost more than all else in a write of a job's state.
//
//   JsonWriter out;
//   out.BeginObject();
//   out.Member("clock", clock);
//   out.Key("range");
//   out.Row(begin, end);
//   out.EndObject();
//
// Whoever writes closes what it opened. The text is as nlohmann::json dumps it, if members are
// written in the order of their keys; for bytes that are not UTF-8 it has U+FFFD.
#pragma once

#include <charconv>
#include <concepts>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <ranges>
#include <string>
#include <string_view>
#include <utility>

namespace ps::coordinator {

class JsonWriter {
 public:
  void BeginObject() { Begin('{'); }
  void EndObject() { End('}'); }
  void BeginArray() { Begin('['); }
  void EndArray() { End(']'); }

  // The next value is the member's.
  void Key(std::string_view key) {
    Add(key);
    text_ += ':';
    first_ = true;
  }
  template <typename T>
  void Member(std::string_view key, const T& value) {
    Key(key);
    Add(value);
  }
  // An array of these.
  template <typename... Ts>
  void Row(const Ts&... values) {
    BeginArray();
    (Add(values), ...);
    EndArray();
  }

  // A value: a truth, a number, a text, or a range of such.
  void Add(std::same_as<bool> auto value) {
    Comma();
    text_ += value ? "true" : "false";
  }
  void Add(std::unsigned_integral auto value) requires(!std::same_as<decltype(value), bool>) {
    Comma();
    char digits[20];
    text_.append(digits, std::to_chars(digits, digits + sizeof(digits), value).ptr);
  }
  void Add(std::string_view value);
  void Add(const char* value) { Add(std::string_view(value)); }
  template <std::ranges::input_range T>
  requires(!std::convertible_to<T, std::string_view>) void Add(const T& values) {
    BeginArray();
    for (const auto& value : values) Add(value);
    EndArray();
  }

  // Anything else.
  void AddTree(const nlohmann::json& value);

  std::string Take() { return std::move(text_); }

 private:
  void Comma() {
    if (!std::exchange(first_, false)) text_ += ',';
  }
  void Begin(char bracket) {
    Comma();
    text_ += bracket;
    first_ = true;
  }
  void End(char bracket) {
    text_ += bracket;
    first_ = false;
  }

  std::string text_;
  bool first_ = true;  // no comma before what comes next
};

}  // namespace ps::coordinator
