//! Controller properties and the commands that read and write them (NVMe Base 2.x, "Controller
//! properties"; NVMe-oF, "Property Get" and "Property Set").

use super::Sqe;
use super::opcode::fctype;

/// Property offsets.
pub mod property {
    /// Controller capabilities, 8 bytes.
    pub const CAP: u32 = 0x00;
    /// Version.
    pub const VS: u32 = 0x08;
    /// Controller configuration.
    pub const CC: u32 = 0x14;
    /// Controller status.
    pub const CSTS: u32 = 0x1C;
    /// NVM subsystem reset.
    pub const NSSR: u32 = 0x20;
    /// Controller ready timeouts.
    pub const CRTO: u32 = 0x68;
}

/// Property Get or Set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Property {
    /// Offset of the property.
    pub offset: u32,
    /// ATTRIB size: 8 bytes, else 4.
    pub eight_bytes: bool,
    /// The value to set; 0 for a get.
    pub value: u64,
}

impl Property {
    /// Property Get of the property at `offset` (8 bytes for CAP, else 4).
    pub fn get(offset: u32) -> Sqe {
        Self { offset, eight_bytes: offset == property::CAP, value: 0 }.to_sqe(fctype::PROPERTY_GET)
    }

    /// Property Set of a 4-byte property.
    pub fn set(offset: u32, value: u32) -> Sqe {
        Self { offset, eight_bytes: false, value: u64::from(value) }.to_sqe(fctype::PROPERTY_SET)
    }

    fn to_sqe(self, fctype: u8) -> Sqe {
        let mut sqe = Sqe::fabrics(fctype);
        sqe.cdw10.set(u32::from(self.eight_bytes));
        sqe.cdw11.set(self.offset);
        sqe.cdw12.set(self.value as u32);
        sqe.cdw13.set((self.value >> 32) as u32);
        sqe
    }

    /// From such a command; `None` for a size that does not exist.
    pub const fn from_sqe(sqe: &Sqe) -> Option<Self> {
        let eight_bytes = match sqe.cdw10.get() & 0b111 {
            0 => false,
            1 => true,
            _ => return None,
        };
        let value = sqe.cdw12.get() as u64 | (sqe.cdw13.get() as u64) << 32;
        Some(Self { offset: sqe.cdw11.get(), eight_bytes, value })
    }
}

/// Declares accessors of a bit field: a getter, and a `with_` that replaces it.
macro_rules! bits {
    ($repr:ty; $($(#[$doc:meta])* $name:ident / $with:ident: $ty:ty = $hi:literal : $lo:literal;)*) => {
        $(
            $(#[$doc])*
            pub const fn $name(self) -> $ty {
                ((self.0 >> $lo) & (<$repr>::MAX >> (<$repr>::BITS - 1 - ($hi - $lo)))) as $ty
            }

            /// The same with another value in that field (cut to its width).
            #[must_use]
            pub const fn $with(self, value: $ty) -> Self {
                let mask = <$repr>::MAX >> (<$repr>::BITS - 1 - ($hi - $lo));
                Self(self.0 & !(mask << $lo) | (value as $repr & mask) << $lo)
            }
        )*
    };
}

/// CAP: controller capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cap(pub u64);

impl Cap {
    bits! { u64;
        /// MQES: most entries of a queue, 0's based.
        mqes / with_mqes: u16 = 15:0;
        /// CQR: contiguous queues required (1 on fabrics).
        cqr / with_cqr: u8 = 16:16;
        /// AMS: arbitration mechanisms.
        ams / with_ams: u8 = 18:17;
        /// TO: worst time to become ready, in 500 ms.
        to / with_to: u8 = 31:24;
        /// DSTRD: doorbell stride (0 on fabrics).
        dstrd / with_dstrd: u8 = 35:32;
        /// NSSRS: subsystem reset supported.
        nssrs / with_nssrs: u8 = 36:36;
        /// CSS: command sets (bit 0 NVM, 6 several, 7 none).
        css / with_css: u8 = 44:37;
        /// MPSMIN: smallest memory page, 2^(12 + n) bytes.
        mpsmin / with_mpsmin: u8 = 51:48;
        /// MPSMAX: largest memory page, 2^(12 + n) bytes.
        mpsmax / with_mpsmax: u8 = 55:52;
        /// CRWMS: ready with media supported.
        crwms / with_crwms: u8 = 59:59;
        /// CRIMS: ready independent of media supported.
        crims / with_crims: u8 = 60:60;
    }
}

/// CC: controller configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cc(pub u32);

impl Cc {
    bits! { u32;
        /// EN: enabled.
        en / with_en: u8 = 0:0;
        /// CSS: command set selected (0 NVM, 6 all, 7 admin only).
        css / with_css: u8 = 6:4;
        /// MPS: memory page size, 2^(12 + n) bytes.
        mps / with_mps: u8 = 10:7;
        /// AMS: arbitration mechanism.
        ams / with_ams: u8 = 13:11;
        /// SHN: shutdown notification.
        shn / with_shn: u8 = 15:14;
        /// IOSQES: I/O SQ entry, 2^n bytes (6).
        iosqes / with_iosqes: u8 = 19:16;
        /// IOCQES: I/O CQ entry, 2^n bytes (4).
        iocqes / with_iocqes: u8 = 23:20;
        /// CRIME: ready independent of media enabled.
        crime / with_crime: u8 = 24:24;
    }

    /// SHN: normal shutdown.
    pub const SHN_NORMAL: u8 = 1;
    /// SHN: abrupt shutdown.
    pub const SHN_ABRUPT: u8 = 2;

    /// What a host of the NVM command set enables a controller with.
    pub const ENABLE: Self = Self(0).with_iosqes(6).with_iocqes(4).with_en(1);
}

/// CSTS: controller status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Csts(pub u32);

impl Csts {
    bits! { u32;
        /// RDY: ready.
        rdy / with_rdy: u8 = 0:0;
        /// CFS: fatal status.
        cfs / with_cfs: u8 = 1:1;
        /// SHST: shutdown status.
        shst / with_shst: u8 = 3:2;
        /// NSSRO: a subsystem reset occurred.
        nssro / with_nssro: u8 = 4:4;
        /// PP: processing paused.
        pp / with_pp: u8 = 5:5;
    }

    /// SHST: no shutdown asked for.
    pub const SHST_NORMAL: u8 = 0;
    /// SHST: shutdown under way.
    pub const SHST_OCCURRING: u8 = 1;
    /// SHST: shutdown complete.
    pub const SHST_COMPLETE: u8 = 2;
}

/// VS: version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Vs(pub u32);

impl Vs {
    /// NVMe 1.3.
    pub const V1_3: Self = Self(0x0001_0300);
    /// NVMe 2.0.
    pub const V2_0: Self = Self(0x0002_0000);

    /// Major, minor, tertiary.
    pub const fn parts(self) -> (u16, u8, u8) {
        ((self.0 >> 16) as u16, (self.0 >> 8) as u8, self.0 as u8)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    /// Round trip of every field: set alone it is where the spec says, and set in ones it clears.
    macro_rules! round_trip {
        ($ty:ident, $repr:ty: $($get:ident $with:ident $hi:literal $lo:literal;)*) => {$(
            let mask: $repr = (<$repr>::MAX >> (<$repr>::BITS - 1 - ($hi - $lo))) << $lo;
            let ones = $ty::default().$with(!0);
            assert_eq!(ones.0, mask, stringify!($get));
            assert_eq!(ones.$get() as $repr, mask >> $lo, stringify!($get));
            assert_eq!($ty(<$repr>::MAX).$with(0).0, !mask, stringify!($get));
            assert_eq!($ty(<$repr>::MAX).$with(0).$get(), 0, stringify!($get));
        )*};
    }

    #[test]
    fn every_field_is_where_the_spec_has_it() {
        round_trip!(Cap, u64:
            mqes with_mqes 15 0; cqr with_cqr 16 16; ams with_ams 18 17; to with_to 31 24;
            dstrd with_dstrd 35 32; nssrs with_nssrs 36 36; css with_css 44 37;
            mpsmin with_mpsmin 51 48; mpsmax with_mpsmax 55 52; crwms with_crwms 59 59;
            crims with_crims 60 60;);
        round_trip!(Cc, u32:
            en with_en 0 0; css with_css 6 4; mps with_mps 10 7; ams with_ams 13 11;
            shn with_shn 15 14; iosqes with_iosqes 19 16; iocqes with_iocqes 23 20;
            crime with_crime 24 24;);
        round_trip!(Csts, u32:
            rdy with_rdy 0 0; cfs with_cfs 1 1; shst with_shst 3 2; nssro with_nssro 4 4;
            pp with_pp 5 5;);
    }

    #[test]
    fn well_known_values_hold() {
        assert_eq!(Cc::ENABLE.0, 0x0046_0001);
        let cap = Cap::default().with_mqes(127).with_cqr(1).with_to(30).with_css(1);
        assert_eq!(cap.0, 0x0000_0020_1E01_007F);
        assert_eq!(Vs::V1_3.parts(), (1, 3, 0));
        assert!(Vs::V2_0 > Vs::V1_3);
    }

    #[test]
    fn property_commands_are_laid_out_as_in_the_spec() {
        let sqe = Property::set(property::CC, 0x0046_0001);
        let bytes = sqe.as_bytes();
        assert_eq!(bytes[..8], [0x7F, 0x40, 0, 0, 0x00, 0, 0, 0]);
        assert_eq!(bytes[40..56], [0, 0, 0, 0, 0x14, 0, 0, 0, 1, 0, 0x46, 0, 0, 0, 0, 0]);
        let expected = Property { offset: property::CC, eight_bytes: false, value: 0x0046_0001 };
        assert_eq!(Property::from_sqe(&sqe), Some(expected));
        let sqe = Property::get(property::CAP);
        assert_eq!(sqe.as_bytes()[4], 0x04);
        assert_eq!(sqe.as_bytes()[40..48], [1, 0, 0, 0, 0, 0, 0, 0]);
        let mut odd = sqe;
        odd.cdw10.set(2);
        assert_eq!(Property::from_sqe(&odd), None);
    }
}
