"""What all reports share: the frame and the style of a page, pieces of HTML, charts, small pictures."""
