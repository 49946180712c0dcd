//! ICReq and ICResp: what a host asks of a connection, and what came of it.

use crate::pdu::fes::offset;
use crate::pdu::{Decoder, Fatal, HeaderBuf, ICReq, ICResp, Params, Pdu};

/// What is asked of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub hdgst: bool,
    pub ddgst: bool,
    pub hpda: u8,
}

/// What was agreed on: for PDUs that we send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    pub params: Params,
    pub h2c_data_max: u32,
}

impl Ask {
    /// The first PDU on a connection.
    pub(super) fn icreq(self) -> HeaderBuf {
        let Self { hdgst, ddgst, hpda } = self;
        let icreq = ICReq { pfv: 0, hpda, hdgst, ddgst, maxr2t: 0 };
        HeaderBuf::encode(&Pdu::ICReq(icreq), &Params::default())
    }

    /// Takes the answer, which `decoder` has just yielded. Digests must be granted exactly as asked
    /// for, as Linux hosts demand too.
    ///
    /// # Errors
    /// When they are not.
    pub(super) fn agree(self, decoder: &mut Decoder, icresp: ICResp) -> Result<Agreed, Fatal> {
        let Self { hdgst, ddgst, hpda } = self;
        if (icresp.hdgst, icresp.ddgst) != (hdgst, ddgst) {
            return Err(Fatal::InvalidHeaderField(offset::DGST));
        }
        decoder.set_params(Params { hdgst, ddgst, pda: hpda });
        let params = Params { hdgst, ddgst, pda: icresp.cpda };
        Ok(Agreed { params, h2c_data_max: icresp.maxh2cdata })
    }
}
