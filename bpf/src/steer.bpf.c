// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
//
// The steering program: frames for our addresses go to the AF_XDP socket of their receive queue,
// all else goes to the kernel. "Ours" is decided by the destination address alone (any protocol,
// fragments too), by the addresses in an ARP packet, and by the target of a neighbour
// solicitation or advertisement. A frame cut short, or not what its type says, is the kernel's.
//
// A frame has one receiver, but announcements of other nodes (gratuitous ARP, unsolicited NA)
// concern both the kernel and us: they go to the kernel, and we get a copy through a ring buffer.
//
// Known limit: a tag that the NIC has taken off (as with a VLAN device of the kernel on veth) is
// not seen here.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/icmpv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ADDRS_MAX 32
#define QUEUES_MAX 256
#define VLAN_NONE 0xffff
#define VLAN_VID_MASK 0x0fff

// A VLAN tag, and a neighbour advertisement with its link-layer address option.
#define ANNOUNCEMENT_MAX 94

// In step with `read_counters` in lib.rs. The first seven name what a frame is, and add up to the
// frames seen. Counted beside that: NO_SOCKET, those of ours whose queue has no socket (dropped,
// since the kernel does not own their address); UNHEARD, announcements that found the ring full.
enum verdict {
	PASS_OTHER, IPV4, IPV6, ARP, ND, MALFORMED, ANNOUNCEMENT, NO_SOCKET, UNHEARD, VERDICTS
};

// Written by the loader before the program is loaded; constants to the verifier.
const volatile __u32 addrs4[ADDRS_MAX];
const volatile __u32 addrs4_len;
const volatile __u32 addrs6[ADDRS_MAX][4];
const volatile __u32 addrs6_len;
const volatile __u16 vlan = VLAN_NONE;

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, QUEUES_MAX);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICTS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

// In step with `Announced` in lib.rs.
struct announcement {
	__u16 len;
	__u8 frame[ANNOUNCEMENT_MAX];
};

// When it is full, news are lost: nodes announce themselves more than once, and are asked for.
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16384);
} announcements SEC(".maps");

struct vlan_header {
	__be16 tci;
	__be16 proto;
};

struct arp_packet {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender_ip[4]; // not aligned to 4 bytes
	__u8 target_mac[6];
	__u8 target_ip[4];
} __attribute__((packed));

static __always_inline void count(__u32 verdict)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &verdict);

	if (n)
		*n += 1; // per CPU: no other writer
}

static __always_inline int is_our_ip4(__u32 addr)
{
#pragma unroll
	for (__u32 i = 0; i < ADDRS_MAX; i++)
		if (i < addrs4_len && addrs4[i] == addr)
			return 1;
	return 0;
}

static __always_inline int is_our_ip6(const struct in6_addr *addr)
{
	const __u32 *a = addr->in6_u.u6_addr32;

#pragma unroll
	for (__u32 i = 0; i < ADDRS_MAX; i++)
		if (i < addrs6_len && addrs6[i][0] == a[0] && addrs6[i][1] == a[1] &&
		    addrs6[i][2] == a[2] && addrs6[i][3] == a[3])
			return 1;
	return 0;
}

static __always_inline enum verdict classify_arp(const void *p, const void *end, int group)
{
	const struct arp_packet *arp = p;
	__u32 sender, target;

	if ((const void *)(arp + 1) > end)
		return MALFORMED;
	if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETH_P_IP) ||
	    arp->hardware_len != 6 || arp->protocol_len != 4)
		return MALFORMED;
	__builtin_memcpy(&sender, arp->sender_ip, 4);
	__builtin_memcpy(&target, arp->target_ip, 4);
	// The target is ours: a question to us, or the answer to ours. The sender is ours: another
	// node claims our address (the answer to an RFC 5227 probe has no target address).
	if (is_our_ip4(target) || is_our_ip4(sender))
		return ARP;
	// RFC 5227 §3: request or reply, to all.
	return group && sender == target && sender ? ANNOUNCEMENT : PASS_OTHER;
}

static __always_inline enum verdict classify_ip4(const void *p, const void *end)
{
	const struct iphdr *ip = p;

	if ((const void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return MALFORMED;
	return is_our_ip4(ip->daddr) ? IPV4 : PASS_OTHER;
}

static __always_inline int is_all_nodes(const struct in6_addr *addr)
{
	const __u32 *a = addr->in6_u.u6_addr32;

	return a[0] == bpf_htonl(0xff020000) && !a[1] && !a[2] && a[3] == bpf_htonl(1);
}

static __always_inline enum verdict classify_ip6(const void *p, const void *end)
{
	const struct ipv6hdr *ip = p;
	const struct icmp6hdr *icmp = p + sizeof(*ip);
	const struct in6_addr *target = (const void *)(icmp + 1);
	int neighbour, ours;

	if ((const void *)(ip + 1) > end || ip->version != 6)
		return MALFORMED;
	ours = is_our_ip6(&ip->daddr);
	if (ip->nexthdr != IPPROTO_ICMPV6)
		return ours ? IPV6 : PASS_OTHER;
	if ((const void *)(icmp + 1) > end)
		return MALFORMED;
	neighbour = icmp->icmp6_type == 135 || icmp->icmp6_type == 136; // RFC 4861 §4.3, §4.4
	if (!neighbour)
		return ours ? IPV6 : PASS_OTHER;
	if ((const void *)(target + 1) > end)
		return MALFORMED;
	// To our solicited-node group, or to all nodes: only the target tells whether it is for us.
	if (ours || is_our_ip6(target))
		return ND;
	return icmp->icmp6_type == 136 && is_all_nodes(&ip->daddr) ? ANNOUNCEMENT : PASS_OTHER;
}

static __always_inline enum verdict classify(const void *p, const void *end)
{
	const struct ethhdr *eth = p;
	__be16 proto;

	if ((const void *)(eth + 1) > end)
		return MALFORMED;
	p = eth + 1;
	proto = eth->h_proto;
	if (vlan != VLAN_NONE) {
		const struct vlan_header *tag = p;

		if (proto != bpf_htons(ETH_P_8021Q))
			return PASS_OTHER;
		if ((const void *)(tag + 1) > end)
			return MALFORMED;
		if ((bpf_ntohs(tag->tci) & VLAN_VID_MASK) != vlan)
			return PASS_OTHER;
		p = tag + 1;
		proto = tag->proto;
	}
	switch (bpf_ntohs(proto)) {
	case ETH_P_IP:
		return classify_ip4(p, end);
	case ETH_P_IPV6:
		return classify_ip6(p, end);
	case ETH_P_ARP:
		return classify_arp(p, end, eth->h_dest[0] & 1);
	default: // another protocol, or a tag that is not ours
		return PASS_OTHER;
	}
}

// Copies an announcement into the ring; userspace parses it as it would the frame.
static __always_inline void hear(struct xdp_md *ctx)
{
	__u64 len = bpf_xdp_get_buff_len(ctx);
	struct announcement *copy = bpf_ringbuf_reserve(&announcements, sizeof(*copy), 0);

	if (!copy) {
		count(UNHEARD);
		return;
	}
	if (len > ANNOUNCEMENT_MAX)
		len = ANNOUNCEMENT_MAX;
	if (len < sizeof(struct ethhdr) ||
	    bpf_xdp_load_bytes(ctx, 0, copy->frame, len)) {
		bpf_ringbuf_discard(copy, 0);
		return;
	}
	copy->len = len;
	bpf_ringbuf_submit(copy, 0);
}

SEC("xdp.frags")
int steer(struct xdp_md *ctx)
{
	enum verdict verdict =
		classify((const void *)(long)ctx->data, (const void *)(long)ctx->data_end);
	int action;

	count(verdict);
	if (verdict == ANNOUNCEMENT)
		hear(ctx);
	if (verdict == PASS_OTHER || verdict == MALFORMED || verdict == ANNOUNCEMENT)
		return XDP_PASS;
	action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);
	if (action != XDP_REDIRECT)
		count(NO_SOCKET);
	return action;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
