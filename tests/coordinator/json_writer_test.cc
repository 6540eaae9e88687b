#include "coordinator/core/json_writer.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace ps::coordinator {
namespace {

TEST(JsonWriterTest, WritesWhatNlohmannDumps) {
  JsonWriter out;
  out.BeginObject();
  out.Member("a", std::vector<std::vector<std::uint32_t>>{{}, {1, 2}, {3}});
  out.Member("b", true);
  out.Key("c");
  out.BeginArray();
  out.Row(std::string("x"), 7U, false);
  out.BeginObject();
  out.EndObject();
  out.Add("y");
  out.EndArray();
  out.Member("d", std::numeric_limits<std::uint64_t>::max());
  out.Key("e");
  out.AddTree({{"metric", 0.1}});
  out.EndObject();
  const nlohmann::json same = {{"a", {nlohmann::json::array(), {1, 2}, {3}}},
                               {"b", true},
                               {"c", {{"x", 7, false}, nlohmann::json::object(), "y"}},
                               {"d", std::numeric_limits<std::uint64_t>::max()},
                               {"e", {{"metric", 0.1}}}};
  EXPECT_EQ(out.Take(), same.dump());
}

TEST(JsonWriterTest, AnyTextIsOneString) {
  for (const std::string text : {"", "\"", "\\", "a\nb", "\x01", "\x7f", "z\xc3\xbcrich", "/"}) {
    JsonWriter out;
    out.Row(text, "next");
    EXPECT_EQ(out.Take(), nlohmann::json({text, "next"}).dump());
  }
  JsonWriter out;
  out.Add(std::string_view("not \xff UTF-8"));
  EXPECT_EQ(nlohmann::json::parse(out.Take()).get<std::string>(), "not \xef\xbf\xbd UTF-8");
}

}  // namespace
}  // namespace ps::coordinator
