// Files of tokens for the REST API as an operator keeps them: one for each token, and the list that
// coordinators have (common/net/api_tokens.h).
//
// The list is replaced at once, by a rename, and by one command at a time; comments stay. One
// thread.
#pragma once

#include <filesystem>
#include <string>

#include "common/net/api_tokens.h"
#include "common/result.h"

namespace ps::cli {

// Makes a token, writes it to `token_file` for its owner alone, and adds its hash to the list,
// which is made if there is none. Returns what is in the list. kConflict if the file is there
// already, or the list has that name; then nothing has changed.
Result<net::ApiToken> CreateApiToken(net::ApiToken token, const std::filesystem::path& token_file,
                                     const std::filesystem::path& list);

// Takes the token of that name from the list, and returns it. kNotFound if there is none.
Result<net::ApiToken> RevokeApiToken(const std::string& name, const std::filesystem::path& list);

}  // namespace ps::cli
