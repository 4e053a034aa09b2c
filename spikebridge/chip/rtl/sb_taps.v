// SPDX-License-Identifier: Apache-2.0
// Where a tap of a convolution leads an input pixel: rows of weights and of membranes.
//
// Strides and pools are powers of two, so that coordinates take shifts only; the two products of
// an address have a small coordinate on one side.  Combinational.
module sb_taps #(
    parameter ADDRESS = 16,   // bits of addresses, more than COORDINATE
    parameter COORDINATE = 8, // bits of coordinates, padding and kernel included
    parameter XBITS = 4,      // of an event: {y, x, channel}
    parameter YBITS = 4,
    parameter CBITS = 4
) (
    input wire [YBITS+XBITS+CBITS-1:0] event_code,
    input wire [COORDINATE-1:0] ky,
    input wire [COORDINATE-1:0] kx,
    input wire [COORDINATE-1:0] kernel,
    input wire [COORDINATE-1:0] padding,
    input wire [1:0] stride,  // 2^stride
    input wire [1:0] pool,    // 2^pool
    input wire [COORDINATE-1:0] height, // outputs before pooling that reach one after it
    input wire [COORDINATE-1:0] width,
    input wire [ADDRESS-1:0] weight_y,  // rows of weights from one tap to the next
    input wire [ADDRESS-1:0] weight_x,
    input wire [ADDRESS-1:0] row_y,     // rows of membranes from one pixel to the next
    input wire [ADDRESS-1:0] row_x,
    output wire [COORDINATE-1:0] first_y, // tap that the stride begins with
    output wire [COORDINATE-1:0] first_x,
    output wire none,         // no tap of the kernel fits the stride
    output wire hit,
    output wire last_y,       // no further tap in this direction
    output wire last_x,
    output wire [COORDINATE-1:0] step,
    output wire [ADDRESS-1:0] weight,   // offset of the tap's weights for this channel
    output wire [ADDRESS-1:0] row       // offset of the membranes of the output pixel
);
    wire [COORDINATE-1:0] y = {{(COORDINATE - YBITS){1'b0}}, event_code[CBITS+XBITS +: YBITS]};
    wire [COORDINATE-1:0] x = {{(COORDINATE - XBITS){1'b0}}, event_code[CBITS +: XBITS]};
    wire [ADDRESS-1:0] channel = {{(ADDRESS - CBITS){1'b0}}, event_code[0 +: CBITS]};
    wire [COORDINATE-1:0] one = {{(COORDINATE - 1){1'b0}}, 1'b1};

    wire [COORDINATE-1:0] far_y = y + padding;
    wire [COORDINATE-1:0] far_x = x + padding;
    wire [COORDINATE-1:0] out_y = (far_y - ky) >> stride;
    wire [COORDINATE-1:0] out_x = (far_x - kx) >> stride;
    wire [COORDINATE-1:0] pixel_y = out_y >> pool;
    wire [COORDINATE-1:0] pixel_x = out_x >> pool;

    assign step = one << stride;
    assign first_y = far_y & (step - one);
    assign first_x = far_x & (step - one);
    assign none = first_y >= kernel || first_x >= kernel;
    assign last_y = ky + step >= kernel;
    assign last_x = kx + step >= kernel;
    assign hit = far_y >= ky && out_y < height && far_x >= kx && out_x < width;
    assign weight = {{(ADDRESS - COORDINATE){1'b0}}, ky} * weight_y
                  + {{(ADDRESS - COORDINATE){1'b0}}, kx} * weight_x + channel;
    assign row = {{(ADDRESS - COORDINATE){1'b0}}, pixel_y} * row_y
               + {{(ADDRESS - COORDINATE){1'b0}}, pixel_x} * row_x;
endmodule
