//! The files that people write: a configuration of `moorline serve`, a scenario. Whatever is in
//! them, they are taken or refused in words.

use moorline::scenario::Scenario;
use moorline::serve::config::Config;

/// A configuration, as `moorline serve --check` reads it.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = Config::parse("fuzz.toml", text) {
        assert!(format!("{error:#}").contains("fuzz.toml"), "{error:#}");
    }
}

/// A scenario of `moorline rig run`.
pub fn scenario(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = Scenario::parse(text) {
        assert!(!error.to_string().is_empty());
    }
}
