"""Methods that say where in an image a score comes from.

One method a file: saliency, occlusion, rise, cam (also gradcam), attention, segment and guided.
`gradients` and `masking` serve them.
"""
