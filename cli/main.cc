#include "cli/app.h"

int main(int argc, char** argv) {
  ps::cli::Environment environment = ps::cli::RealEnvironment();
  const std::vector<std::string> arguments(argv + (argc > 0 ? 1 : 0), argv + argc);
  return static_cast<int>(ps::cli::RunCli(arguments, environment));
}
