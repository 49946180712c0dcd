//! Names: NQNs, and the 128-bit host identifier in its UUID form.

use std::fmt;
use std::str::FromStr;

use crate::limits::NQN_BYTES_MAX;

/// The well-known discovery subsystem.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// What a UUID-based NQN begins with.
pub const UUID_NQN_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// An NVMe qualified name, valid: `nqn.yyyy-mm.` and a name, at most 223 bytes of UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nqn(Box<str>);

/// Why a name is no NQN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NqnError {
    /// Longer than 223 bytes, or without its NUL in a field.
    #[error("an NQN has at most 223 bytes")]
    TooLong,
    /// Not UTF-8, or with control characters in it.
    #[error("an NQN is UTF-8 text without control characters")]
    NotText,
    /// Does not begin with a date.
    #[error("an NQN begins with \"nqn.yyyy-mm.\", as in nqn.2014-08.org.example:name")]
    NoDate,
    /// Has the prefix of UUID-based names, but no UUID.
    #[error("\"nqn.2014-08.org.nvmexpress:uuid:\" is followed by a UUID")]
    NoUuid,
}

impl Nqn {
    /// Checks a name.
    ///
    /// # Errors
    /// When it is no NQN, with the rule it breaks.
    pub fn new(name: &str) -> Result<Self, NqnError> {
        if name.len() > NQN_BYTES_MAX {
            return Err(NqnError::TooLong);
        }
        if name.chars().any(char::is_control) {
            return Err(NqnError::NotText);
        }
        if !has_date(name.as_bytes()) {
            return Err(NqnError::NoDate);
        }
        match name.strip_prefix(UUID_NQN_PREFIX) {
            Some(uuid) if uuid.parse::<HostId>().is_err() => Err(NqnError::NoUuid),
            Some(_) | None => Ok(Self(name.into())),
        }
    }

    /// From a NUL-terminated 256-byte field of Connect, Identify or the discovery log.
    ///
    /// # Errors
    /// When its content is no NQN.
    pub fn from_field(field: &[u8; 256]) -> Result<Self, NqnError> {
        let end = field.iter().position(|byte| *byte == 0).ok_or(NqnError::TooLong)?;
        let name = std::str::from_utf8(&field[..end]).map_err(|_| NqnError::NotText)?;
        Self::new(name)
    }

    /// As such a field.
    pub fn to_field(&self) -> [u8; 256] {
        let mut field = [0; 256];
        field[..self.0.len()].copy_from_slice(self.0.as_bytes());
        field
    }

    /// The well-known discovery NQN.
    pub fn discovery() -> Self {
        Self(DISCOVERY_NQN.into())
    }

    /// The UUID-based NQN of a host.
    pub fn of_uuid(id: &HostId) -> Self {
        Self(format!("{UUID_NQN_PREFIX}{id}").into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the well-known discovery NQN.
    pub fn is_discovery(&self) -> bool {
        &*self.0 == DISCOVERY_NQN
    }
}

/// `nqn.yyyy-mm` and, when anything follows, a dot.
fn has_date(name: &[u8]) -> bool {
    let pattern = b"nqn.dddd-dd";
    name.len() >= pattern.len()
        && pattern.iter().zip(name).all(|(pattern, byte)| match pattern {
            b'd' => byte.is_ascii_digit(),
            other => other == byte,
        })
        && name.get(pattern.len()).is_none_or(|byte| *byte == b'.')
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Nqn {
    type Err = NqnError;

    fn from_str(name: &str) -> Result<Self, NqnError> {
        Self::new(name)
    }
}

/// A host identifier (HOSTID), or any other UUID: 16 bytes in the order in which they are written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId([u8; 16]);

/// Not a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a UUID has 32 hexadecimal digits, as in 00112233-4455-6677-8899-aabbccddeeff")]
pub struct UuidError;

impl HostId {
    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// A random (version 4) UUID from 16 random bytes.
    pub const fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0F | 0x40;
        bytes[8] = bytes[8] & 0x3F | 0x80;
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Whether all bytes are 0, which no host may use.
    pub fn is_nil(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl FromStr for HostId {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Self, UuidError> {
        let text = text.as_bytes();
        let dashed = text.len() == 36;
        if !dashed && text.len() != 32 {
            return Err(UuidError);
        }
        let mut bytes = [0; 16];
        let mut digits = 0;
        for (at, byte) in text.iter().enumerate() {
            if dashed && matches!(at, 8 | 13 | 18 | 23) {
                if *byte != b'-' {
                    return Err(UuidError);
                }
                continue;
            }
            let digit = char::from(*byte).to_digit(16).ok_or(UuidError)? as u8;
            bytes[digits / 2] = bytes[digits / 2] << 4 | digit;
            digits += 1;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in [
            DISCOVERY_NQN,
            "nqn.2014-08",
            "nqn.2026-01.org.moorline:disk.1",
            "nqn.2014-08.org.nvmexpress:uuid:00112233-4455-6677-8899-aabbccddeeff",
        ] {
            let nqn = Nqn::new(good).unwrap();
            assert_eq!(nqn.as_str(), good);
            assert_eq!(Nqn::from_field(&nqn.to_field()), Ok(nqn));
        }
        for (bad, error) in [
            ("", NqnError::NoDate),
            ("iqn.2014-08.org", NqnError::NoDate),
            ("nqn.2014.08.org", NqnError::NoDate),
            ("nqn.20x4-08.org", NqnError::NoDate),
            ("nqn.dddd-dd.org", NqnError::NoDate),
            ("nqn.2014-08org", NqnError::NoDate),
            ("nqn.2014-08.org\n", NqnError::NotText),
            ("nqn.2014-08.org.nvmexpress:uuid:0011", NqnError::NoUuid),
        ] {
            assert_eq!(Nqn::new(bad), Err(error), "{bad:?}");
        }
        let longest = format!("nqn.2014-08.{}", "a".repeat(NQN_BYTES_MAX - 12));
        assert!(Nqn::new(&longest).is_ok());
        assert_eq!(Nqn::new(&(longest + "a")), Err(NqnError::TooLong));
        assert_eq!(Nqn::from_field(&[b'a'; 256]), Err(NqnError::TooLong));
        assert_eq!(Nqn::from_field(&[0xFF; 256]), Err(NqnError::TooLong));
        assert!(Nqn::discovery().is_discovery());
    }

    #[test]
    fn uuids_are_read_and_written() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let id: HostId = text.parse().unwrap();
        assert_eq!(id.as_bytes()[..3], [0, 0x11, 0x22]);
        assert_eq!(id.to_string(), text);
        assert_eq!(text.replace('-', "").to_uppercase().parse(), Ok(id));
        assert_eq!(Nqn::of_uuid(&id).as_str(), format!("{UUID_NQN_PREFIX}{text}"));
        for bad in ["", "0011", "00112233-4455-6677-8899-aabbccddeefg", &"-".repeat(36)] {
            assert_eq!(bad.parse::<HostId>(), Err(UuidError));
        }
        assert!(HostId::from_bytes([0; 16]).is_nil());
        let random = HostId::from_random([0xFF; 16]).to_string();
        assert_eq!(random, "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
