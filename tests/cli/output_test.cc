#include "cli/output.h"

#include <gtest/gtest.h>

namespace ps::cli {
namespace {

TEST(OutputTest, TheFormatsAreKnownByName) {
  EXPECT_EQ(ParseOutputFormat("").value(), OutputFormat::kTable);
  EXPECT_EQ(ParseOutputFormat("wide").value(), OutputFormat::kWide);
  EXPECT_EQ(ParseOutputFormat("yaml").value(), OutputFormat::kYaml);
  EXPECT_EQ(ParseOutputFormat("xml").error().code, ErrorCode::kUsage);
}

TEST(OutputTest, ATableHasStraightColumnsAndNoTrailingSpace) {
  Table table({"ID", "NAME", "PHASE"});
  table.Add({"1", "a-long-name", "running"});
  table.Add({"12", "", "failed"});
  table.Add({"3"});
  EXPECT_EQ(table.ToString(),
            "ID  NAME         PHASE\n"
            "1   a-long-name  running\n"
            "12  -            failed\n"
            "3   -            -\n");
}

TEST(OutputTest, AnEmptyTableIsItsHeader) { EXPECT_EQ(Table({"A", "B"}).ToString(), "A  B\n"); }

TEST(OutputTest, ColumnsStayStraightWithUtf8) {
  Table table({"NAME", "X"});
  table.Add({"\xc3\xa4\xc3\xb6", "1"});
  table.Add({"abcd", "2"});
  EXPECT_EQ(table.ToString(), "NAME  X\n\xc3\xa4\xc3\xb6    1\nabcd  2\n");
}

TEST(OutputTest, ControlCharactersOfAServerDoNotReachTheTerminal) {
  EXPECT_EQ(Printable("a\x1b[31mb\n\x7f"), "a?[31mb??");
  EXPECT_EQ(Printable("\xc2\x9b"
                      "31m"),
            "??31m");
  EXPECT_EQ(Printable("\xc3\xa4 \xe2\x82\xac"), "\xc3\xa4 \xe2\x82\xac");
  Table table({"X"});
  table.Add({"\x1b]0;title\x07"});
  EXPECT_EQ(table.ToString().find('\x1b'), std::string::npos);
}

TEST(OutputTest, YamlShowsTheSameAsJson) {
  const Json json = Json::parse(R"({"jobs":[{"id":7,"name":"a","tags":[1,2],"empty":[],"none":null},
      {"id":8,"deep":{"list":[{"x":1,"y":"two words"}],"map":{}}}],"text":"true","n":"12"})");
  EXPECT_EQ(YamlText(json),
            "jobs:\n"
            "- id: 7\n"
            "  name: a\n"
            "  tags: [1, 2]\n"
            "  empty: []\n"
            "  none: null\n"
            "- id: 8\n"
            "  deep:\n"
            "    list:\n"
            "    - x: 1\n"
            "      \"y\": \"two words\"\n"
            "    map: {}\n"
            "text: \"true\"\n"
            "\"n\": \"12\"\n");
}

TEST(OutputTest, NumbersAreGroupedAndRounded) {
  EXPECT_EQ(CountText(std::int64_t{0}), "0");
  EXPECT_EQ(CountText(std::int64_t{999}), "999");
  EXPECT_EQ(CountText(std::int64_t{1000}), "1,000");
  EXPECT_EQ(CountText(std::int64_t{-1234567}), "-1,234,567");
  EXPECT_EQ(CountText(std::nullopt), "-");
  EXPECT_EQ(CountText(std::optional<double>(1e300)), "-");
  EXPECT_EQ(DecimalText(0.88771), "0.8877");
  EXPECT_EQ(DecimalText(std::nullopt), "-");
}

TEST(OutputTest, BytesHaveThreeDigitsAndAUnit) {
  EXPECT_EQ(BytesText(0.0), "0 B");
  EXPECT_EQ(BytesText(999.0), "999 B");
  EXPECT_EQ(BytesText(1000.0), "1.00 kB");
  EXPECT_EQ(BytesText(83123.0), "83.1 kB");
  EXPECT_EQ(BytesText(7454760.0), "7.45 MB");
  EXPECT_EQ(BytesText(999'999.0), "1.00 MB");
  EXPECT_EQ(BytesText(std::nullopt), "-");
}

TEST(OutputTest, DurationsAreShownInTwoUnits) {
  EXPECT_EQ(DurationText(0.2), "0s");
  EXPECT_EQ(DurationText(59.4), "59s");
  EXPECT_EQ(DurationText(80.0), "1m 20s");
  EXPECT_EQ(DurationText(11'100.0), "3h 05m");
  EXPECT_EQ(DurationText(-1.0), "-");
  EXPECT_EQ(DurationText(std::nullopt), "-");
}

TEST(OutputTest, DurationsAreReadWithTheirUnit) {
  EXPECT_EQ(ParseDuration("90").value(), 90'000);
  EXPECT_EQ(ParseDuration("1.5s").value(), 1'500);
  EXPECT_EQ(ParseDuration("10m").value(), 600'000);
  EXPECT_EQ(ParseDuration("2h").value(), 7'200'000);
  EXPECT_EQ(ParseDuration("500ms").value(), 500);
  for (const char* bad : {"", "s", "-1", "1 d", "5x", "nan", "inf", "1e99h"}) {
    EXPECT_EQ(ParseDuration(bad).error().code, ErrorCode::kUsage) << bad;
  }
}

TEST(OutputTest, MembersOfAnotherTypeAreNoMembers) {
  const Json json = Json::parse(R"({"s":"x","n":1.5,"i":3,"b":true,"o":{},"big":1e300})");
  EXPECT_EQ(TextOf(json, "s"), "x");
  EXPECT_EQ(TextOf(json, "i"), "3");
  EXPECT_EQ(TextOf(json, "missing", "-"), "-");
  EXPECT_EQ(NumberOf(json, "n"), 1.5);
  EXPECT_EQ(NumberOf(json, "s"), std::nullopt);
  EXPECT_EQ(IntegerOf(json, "i"), 3);
  EXPECT_EQ(IntegerOf(json, "big", -1), -1);
  EXPECT_TRUE(FlagOf(json, "b"));
  EXPECT_FALSE(FlagOf(json, "s"));
  EXPECT_TRUE(MemberOf(Json("text"), "x").is_null());
}

TEST(OutputTest, TextThatIsNotUtf8IsStillWritten) {
  EXPECT_NE(JsonText(Json{{"x", "\xff"}}), "");
  EXPECT_NE(YamlText(Json{{"x", "\xff"}}), "");
}

}  // namespace
}  // namespace ps::cli
