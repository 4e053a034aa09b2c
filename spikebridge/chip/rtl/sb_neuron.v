// SPDX-License-Identifier: Apache-2.0
// Threshold, leak and reset of one lane; combinational.
//
//     s = v if v >= 0 else (v * slope) >> FACTOR
//     spike = s > threshold
//     k = (s * decay) >> FACTOR, then 0 or less amount where there is a spike
//     after = k + bias; just the bias where the sample ends
//
// A readout keeps v itself where it sums, and answers with (v * decay) >> FACTOR.
module sb_neuron #(
    parameter MEMBRANE = 16,  // bits of a membrane
    parameter FACTOR = 8,     // bits of factors behind the point; 1 << FACTOR is the largest
    parameter MULTIPLY = 1    // 0: all factors are 0 or 1, no multipliers
) (
    input wire [MEMBRANE-1:0] v,
    input wire [MEMBRANE-1:0] threshold,
    input wire [MEMBRANE-1:0] amount,
    input wire [MEMBRANE-1:0] bias,
    input wire [FACTOR:0] decay,
    input wire [FACTOR:0] slope,
    input wire readout,
    input wire sum,           // of a readout: over the steps
    input wire gate,          // a spike leaves nothing
    input wire subtract,      // a spike takes the amount
    input wire last,          // the sample ends
    output wire [MEMBRANE-1:0] s,
    output wire spike,
    output wire [MEMBRANE-1:0] answer,
    output wire [MEMBRANE-1:0] after
);
    wire [MEMBRANE-1:0] bent, leaked;

    generate
        if (MULTIPLY != 0) begin : multiplied
            localparam PRODUCT = MEMBRANE + FACTOR + 2;
            wire signed [PRODUCT-1:0] bend, leak;
            assign bend = $signed({{(FACTOR + 2){v[MEMBRANE-1]}}, v})
                        * $signed({{(MEMBRANE + 1){1'b0}}, slope});
            assign leak = $signed({{(FACTOR + 2){s[MEMBRANE-1]}}, s})
                        * $signed({{(MEMBRANE + 1){1'b0}}, decay});
            assign bent = bend[FACTOR +: MEMBRANE];
            assign leaked = leak[FACTOR +: MEMBRANE];
            wire unused = &{1'b0, bend, leak};
        end else begin : chosen
            assign bent = v & {MEMBRANE{slope[FACTOR]}};
            assign leaked = s & {MEMBRANE{decay[FACTOR]}};
            wire unused = &{1'b0, slope, decay};
        end
    endgenerate

    assign s = v[MEMBRANE-1] && !readout ? bent : v;
    assign spike = $signed(s) > $signed(threshold);
    assign answer = leaked;

    wire cleared = readout ? !sum : gate && spike;
    wire [MEMBRANE-1:0] level = readout ? s : leaked;
    wire [MEMBRANE-1:0] taken = amount & {MEMBRANE{subtract && spike}};
    wire [MEMBRANE-1:0] kept = level & {MEMBRANE{!cleared && !last}};

    assign after = (last ? {MEMBRANE{1'b0}} : kept - taken) + bias;
endmodule
